"""The strategies of refnet.testing under the name that tests know."""

from refnet.testing.strategies.regions import *  # noqa: F403
