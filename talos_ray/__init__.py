"""talos_ray."""
