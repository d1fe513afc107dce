"""The values that travel through the stages: addresses, resources, changes, live state, and their JSON form."""
