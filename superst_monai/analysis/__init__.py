"""What users compute from maps and sections, with figures."""
