"""Drafts as trees, who makes them, what they are worth, and which of their nodes are sent. Pure."""
