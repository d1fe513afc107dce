"""Small replacements of standard modules, here only since importing those takes longer than a hook may."""
