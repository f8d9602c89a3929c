"""Analysis of what networks have learned."""
