"""Components for fsae from another distribution."""
