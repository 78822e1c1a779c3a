"""What a teacher said of samples: hard labels with copies, and soft ones."""

import numpy as np
import torch

from fastssl.methods.bricks.targets import Chosen, Targets


def test_chosen_rows_their_labels_and_copies():
    chosen = Chosen(6)
    assert not len(chosen.rows()) and not len(chosen.drawn())
    chosen.write(np.array([4, 1, 2]), np.array([3, 0, 2]), np.array([2, 1, 3]))
    assert chosen.rows().tolist() == [1, 2, 4] and chosen.drawn().tolist() == [1, 2, 2, 2, 4, 4]
    label, weight = chosen.of(torch.tensor([2, 0, 4, 1, 5]))
    assert label.tolist() == [2, 0, 3, 0, 0] and weight.tolist() == [1, 0, 1, 1, 0]
    chosen.write(np.array([5]), np.array([1]))
    assert chosen.rows().tolist() == chosen.drawn().tolist() == [5], "these and no others"


def test_targets_of_rows_that_were_taken():
    table = Targets(6, 3, 2)
    table.mark(np.array([1, 5]))
    assert table.rows().tolist() == [1, 5] and not table.of(torch.tensor([1, 0]))[1].any(), "nothing is said of them yet"
    table.write(torch.tensor([5, 2]), torch.tensor([[0.25, 0.75], [1.0, 0.0]]))
    q, weight = table.of(torch.tensor([2, 1, 5]))
    assert q[0].tolist() == [1, 0] and q[2].tolist() == [0.25, 0.75] and weight.tolist() == [1, 0, 1]
    twin = Targets(6, 3, 2)
    twin.load_state_dict(table.state_dict())
    assert twin.rows().tolist() == [2, 5]
