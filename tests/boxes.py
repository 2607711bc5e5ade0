"""The strategies of refnet.testing under the name that tests know."""

from refnet.testing.strategies.boxes import *  # noqa: F403
