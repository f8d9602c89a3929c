"""Media formats of generated clips."""

FORMATS = ("mp4", "gif", "png")
