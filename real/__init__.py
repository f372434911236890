"""Real execution: GPU modules behind the same executor interface (not built yet; see CHANGELOG.md)."""
