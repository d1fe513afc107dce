"""Output formats of results: text for people, JSON, Markdown, Prometheus metrics."""
