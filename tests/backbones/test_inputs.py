import numpy as np
import pytest

from keras_imm.backbones.inputs import split_inputs

SHAPE = (4, 6, 3)
X, TIMES = np.zeros((2, *SHAPE)), np.zeros(2)
LABELS, AUGMENTATION = np.zeros(2, "int32"), np.zeros((2, 9))


@pytest.mark.parametrize(
    ("inputs", "num_classes", "augmentation_dim"),
    [
        ([X, TIMES, TIMES], 0, 0),
        ([X, TIMES, TIMES, None], 0, 0),
        ([X, TIMES, TIMES, LABELS], 5, 0),
        ([X, TIMES, TIMES], 0, 9),
        ([X, TIMES, TIMES, LABELS], 5, 9),
        ([X, TIMES, TIMES, None, AUGMENTATION], 0, 9),
        ([X, TIMES, TIMES, LABELS, AUGMENTATION], 5, 9),
        ((X, TIMES, TIMES, LABELS, None), 5, 9),
    ],
)
def test_what_is_left_out_at_the_end_is_none(inputs, num_classes, augmentation_dim):
    split = split_inputs(inputs, SHAPE, num_classes, augmentation_dim)
    expected = [*inputs, None, None][:5]
    assert all(a is b for a, b in zip(split, expected, strict=True))
    assert split.x is X
    assert split.labels is expected[3]
    assert split.augmentation_labels is expected[4]


@pytest.mark.parametrize(
    ("inputs", "num_classes", "augmentation_dim", "message"),
    [
        ([X, TIMES], 0, 0, r"`inputs` must be \[x, c_t, c_s\] or .*length 2"),
        ([X, TIMES, TIMES, None, None], 0, 0, r"labels\]\. Received .*length 5"),
        ([X, TIMES], 0, 9, r"augmentation_labels\]\. Received a list of length 2"),
        ([X, TIMES, TIMES, None, None, None], 0, 9, "`inputs` must be .*length 6"),
        ([X[:, :3], TIMES, TIMES], 0, 0, r"`x` must have.*\(4, 6, 3\).*\(2, 3, 6, 3\)"),
        ([X, TIMES[:, None], TIMES], 0, 0, r"`c_t` must.*\(batch,\).*\(2, 1\)"),
        ([X, TIMES, np.zeros(())], 0, 0, r"`c_s` must have shape \(batch,\).*=\(\)"),
        ([X, TIMES, TIMES, LABELS[:, None]], 5, 0, r"`labels` must .*=\(2, 1\)"),
        ([X, TIMES, TIMES, LABELS], 0, 0, r"`labels` must be left out.*\(2,\)"),
        ([X, TIMES, TIMES], 5, 0, "`labels` must be given.*=5; the null label is 5"),
        ([X, TIMES, TIMES, None], 5, 0, "`labels` must be given.*labels=None"),
        (
            [X, TIMES, TIMES, None, AUGMENTATION[:, :8]],
            0,
            9,
            r"`augmentation_labels` must have shape \(batch, 9\).*=\(2, 8\)",
        ),
        (
            [X, TIMES, TIMES, None, AUGMENTATION[0]],
            0,
            9,
            r"`augmentation_labels` must have shape \(batch, 9\).*=\(9,\)",
        ),
    ],
)
def test_wrong_inputs(inputs, num_classes, augmentation_dim, message):
    with pytest.raises(ValueError, match=message):
        split_inputs(inputs, SHAPE, num_classes, augmentation_dim)
