"""All that imports ray. Read driver first: plan, calibrate, train, search, test in a session; operations come
later."""
