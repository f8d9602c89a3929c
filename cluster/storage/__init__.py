"""Files by url on any fsspec store: retries, errors, exclusive writes."""
