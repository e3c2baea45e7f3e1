"""Other programs beside ours, each out of an environment of its own: README.md says what is compared and how to make them."""
