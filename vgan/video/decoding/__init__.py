"""Decoding of video files into frames: containers, times, damage, layout, interlacing, in a child process."""
