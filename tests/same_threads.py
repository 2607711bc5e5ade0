"""How Hypothesis takes the fixture `thread_count`."""

from hypothesis import HealthCheck, settings

same_threads = settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
"""Of a property's test: the number of threads stays as the fixture set it, for all examples."""
