"""What runs at night: settings, schedules, intake, pipelines and notices."""
