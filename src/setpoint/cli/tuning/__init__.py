"""The stages of `setpoint tune`: profile, measure, show. The decisions lie in `setpoint.planner`."""
