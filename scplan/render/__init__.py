"""Results in the forms that people and programs read: text, JSON, Markdown, Prometheus metrics."""
