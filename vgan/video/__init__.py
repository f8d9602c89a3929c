"""Video processing: decoding, shot detection, stabilization and quality scores of clips."""
