"""Preference studies: trials on storage, rating server, votes, report."""
