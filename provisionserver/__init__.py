"""The provisioning server and its client: what a machine shall be, and how it gets there."""
