"""The values that the stages pass on: addresses, resources, changes, live state, reports, and their JSON form."""
