"""The contracts of all of refnet's operations, a file a family. They need hypothesis."""

from itertools import chain

from refnet.testing.contract import Contract
from refnet.testing.contracts import (
    convolution,
    dense,
    losses,
    matching,
    normalisation,
    pooling,
    regions,
    resizing,
    suppression,
    updates,
)

CONTRACTS: dict[str, Contract] = {
    contract.operation.name: contract
    for contract in chain(
        convolution.CONTRACTS,
        dense.CONTRACTS,
        losses.CONTRACTS,
        matching.CONTRACTS,
        normalisation.CONTRACTS,
        pooling.CONTRACTS,
        regions.CONTRACTS,
        resizing.CONTRACTS,
        suppression.CONTRACTS,
        updates.CONTRACTS,
    )
}
