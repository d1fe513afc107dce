"""Small replacements of standard modules whose import takes longer than a hook may take."""
