"""All that imports ray. Read driver first: plan, calibrate, train, search, verify in a session; operations come
later."""
