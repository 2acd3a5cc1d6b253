"""Building blocks that know no model: attention, positions, transformer layers, heads, trunks."""
