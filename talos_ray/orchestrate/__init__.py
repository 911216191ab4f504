"""All that imports ray. Read driver first: it calls calibrate, train, search and verify in this order."""
