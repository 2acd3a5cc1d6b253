"""The detectors, one paper one file, and the catalogue that names their presets."""
