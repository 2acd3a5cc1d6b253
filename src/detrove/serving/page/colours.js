// Colours that people with any form of colour blindness can tell apart (Okabe and Ito), and one scale for maps.

const PALETTE = [[230, 159, 0], [86, 180, 233], [0, 158, 115], [204, 121, 167], [240, 228, 66], [213, 94, 0], [0, 114, 178]];

/** As the drawings of `detrove predict`: the palette, then lighter and darker turns of it. */
export function classColour(place) {
  const colour = PALETTE[place % PALETTE.length];
  const turn = Math.floor(place / PALETTE.length) % 3;
  if (turn === 0) return css(colour);
  const towards = turn === 1 ? 255 : 0;
  return css(colour.map((value) => Math.round(value + (towards - value) * 0.4)));
}

export const levelColour = (level) => css(PALETTE[level % PALETTE.length]);

/** Black or white, whichever reads better on an rgb(...) colour. */
export function inkOn(colour) {
  const [r, g, b] = colour.match(/\d+/g).map((value) => (value / 255) ** 2.2);
  return 0.2126 * r + 0.7152 * g + 0.0722 * b > 0.179 ? "#000" : "#fff";
}

// matplotlib's "inferno" at nine places; its lightness rises, so that it also reads in grey
const HEAT = [[0, 0, 4], [31, 12, 72], [85, 15, 109], [136, 34, 106], [186, 54, 85], [227, 89, 51], [249, 140, 10], [249, 201, 50], [252, 255, 164]];

/** A share from 0 to 1 as [red, green, blue]. */
export function heat(share) {
  const place = Math.min(Math.max(share, 0), 1) * (HEAT.length - 1);
  const low = Math.min(Math.floor(place), HEAT.length - 2);
  return HEAT[low].map((value, i) => value + (HEAT[low + 1][i] - value) * (place - low));
}

const css = ([r, g, b]) => `rgb(${r}, ${g}, ${b})`;
