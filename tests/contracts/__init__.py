"""What every class of a kind must do: a newcomer's class subclasses its contract.

```python
class TestMyKernel(KernelContract):
    make = MyKernel
```

or, for several instances, a fixture `instance` with parameters in place of `make`.
"""

import pathlib

import pytest

# For assertions that show their values, as in test modules.
pytest.register_assert_rewrite(
    *(f"{__name__}.{path.stem}" for path in pathlib.Path(__file__).parent.glob("*.py"))
)


def subclasses_of(base, module):
    """The subclasses of a base class that a module defines."""
    members = vars(module).values()
    return {
        kind
        for kind in members
        if isinstance(kind, type)
        and issubclass(kind, base)
        and kind is not base
        and kind.__module__ == module.__name__
    }
