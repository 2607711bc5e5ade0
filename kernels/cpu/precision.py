"""How exactly the kernels of the CPU compute: which algorithms a plan may take.

The type of the arrays says what numbers are rounded to; this says whether sums may be rearranged into others. Choices:

* "float32": Winograd's algorithms may serve float32, where their derived error (:mod:`refnet.testing.winograd`) is
  acceptable to :mod:`refnet.kernels.cpu.conv.plan`. float64 is always made of plain products.
* "exact-order": plain products and sums only, whose error obeys the bound of every sum of K products.
"""

from typing import Literal, TypeAlias, get_args

from refnet.kernels.setting import Setting

Precision: TypeAlias = Literal["float32", "exact-order"]

_setting: Setting[Precision] = Setting("precision", get_args(Precision))
set_precision, precision, present_precision = _setting.set, _setting.within, _setting.get
