"""What is measured, and how: protocol, metrics, diagnostics, comparisons."""
