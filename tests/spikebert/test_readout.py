"""The three readouts of a model: what float mode computes, and that integer mode is the graph."""

import numpy as np
import pytest
import torch
from small_models import small_batch, small_config, small_model

from converters.execution import TokenBatch
from converters.from_torch import graph_from_model
from converters.graph import LIF, READOUT_KINDS, Synapses
from converters.readout import float_logits, logits_over_time, unit_of
from converters.torch_engine import TorchEngine
from sim.fast.engine import FastEngine
from sim.reference import ReferenceEngine
from sim.verify import compare
from spikebert import SpikeBertForSequenceClassification, config, layers
from spikebert.quantisation import quantise

READOUTS = ("sum", "membrane", "spikes")


def test_the_kinds_are_the_graphs() -> None:
    assert config.READOUT_KINDS == READOUT_KINDS


@pytest.mark.parametrize("decay", [0, 410, 2048, 4095])
def test_the_float_membrane_by_hand(decay: int) -> None:
    model = small_model(readout="membrane", decay=decay)
    inputs = small_batch()
    with torch.no_grad():
        output = model(**inputs, output_trace=["readout"])
    current = output.trace["readout"].double().sum(2)  # [T, B, C], padding is 0
    keep, v, unit = (4096 - decay) / 4096, 0.0, 0.0
    for each in current:
        v, unit = v * keep + each, unit * keep + 1
    lengths = inputs["attention_mask"].sum(1, keepdim=True)
    torch.testing.assert_close(output.logits.double(), v / unit / lengths, rtol=1e-5, atol=1e-5)
    assert (unit == len(current)) == (decay == 0)


def test_a_membrane_that_keeps_all_gives_the_means() -> None:
    with torch.no_grad():
        one, other = (small_model(readout=kind, decay=0)(**small_batch()).logits for kind in ("membrane", "sum"))
    torch.testing.assert_close(one, other)


def test_late_timesteps_count_more() -> None:
    readout = layers.Readout(3, 2, "membrane", 2048)
    early, late = torch.tensor([[1.0], [0.0]]).double(), torch.tensor([[0.0], [1.0]]).double()
    assert float(readout.integrate(late)) == 2 * float(readout.integrate(early))


@pytest.mark.parametrize("readout", READOUTS)
@pytest.mark.parametrize(("timesteps", "decay"), [(1, 2048), (2, 410), (4, 2048), (8, 410)])
def test_torch_reference_and_fast_are_equal(readout: str, timesteps: int, decay: int) -> None:
    """Trained on for a few steps in integer mode, so that gradients pass too."""
    model = quantise(small_model(readout=readout, timesteps=timesteps, decay=decay))
    optimiser = torch.optim.SGD(model.parameters(), lr=0.05)
    for step in range(2):
        model.train()(**small_batch(step), labels=torch.randint(0, 3, (5,))).loss.backward()
        optimiser.step()
        optimiser.zero_grad()
    graph, inputs = graph_from_model(model.eval()), small_batch(9)
    batch = TokenBatch(inputs["input_ids"].numpy(), inputs["attention_mask"].numpy())
    names = tuple(graph.features)
    expected = ReferenceEngine(graph).run(batch, names)
    for engine in (TorchEngine(graph, model), FastEngine(graph, 2)):
        comparison = compare(graph, expected, engine.run(batch, names))
        assert comparison.mismatches == 0, str(comparison.first_mismatch)
    with torch.no_grad():
        logits = model(**inputs).logits.numpy()
    for one, own, tokens in zip(expected.logits, logits, batch.mask.sum(1).tolist()):
        np.testing.assert_allclose(own, float_logits(graph, one, timesteps, tokens), rtol=1e-5, atol=1e-6)
    assert graph.readout.kind == ("membrane" if readout == "membrane" else "sum")
    assert graph.readout.dv == (decay if readout == "membrane" else 0)


def test_spikes_of_the_classes_are_neurons_of_the_graph() -> None:
    graph = graph_from_model(quantise(small_model(readout="spikes")))
    head, neurons = graph["head"], graph["head.lif"]
    assert isinstance(head, Synapses) and isinstance(neurons, LIF)
    assert head.weight.shape[0] == graph.features["head.lif"] == 3
    assert graph.readout.inputs == ("head.lif",)
    assert (np.diag(graph.readout.weight) > 0).all()  # before training a class is voted for by its own neurons
    assert np.count_nonzero(graph.readout.weight) == 3


@pytest.mark.parametrize("readout", READOUTS)
def test_gradients_reach_every_parameter(readout: str) -> None:
    model = small_model(readout=readout, num_hidden_layers=1).train()
    model(**small_batch(), labels=torch.tensor([0, 1, 2, 0, 1])).loss.backward()
    without = [name for name, parameter in model.named_parameters() if parameter.grad is None]
    assert without == []


@pytest.mark.parametrize("readout", READOUTS)
def test_saved_and_loaded_it_is_the_same(readout: str, tmp_path) -> None:
    model = quantise(small_model(readout=readout))
    model.save_pretrained(tmp_path)
    loaded = SpikeBertForSequenceClassification.from_pretrained(tmp_path).eval()
    assert loaded.config.readout == readout
    with torch.no_grad():
        assert torch.equal(loaded(**small_batch()).integer_logits, model(**small_batch()).integer_logits)


def test_after_fewer_timesteps_it_is_the_membrane_at_that_time() -> None:
    model, inputs = quantise(small_model(readout="membrane")), small_batch()
    graph = graph_from_model(model)
    with torch.no_grad():
        current = model(**inputs, output_trace=["readout"]).trace["readout"].numpy().astype(np.int64)
        over_time = logits_over_time(graph, current)
        for timesteps in (1, 2, 3):
            model.set_timesteps(timesteps)
            assert np.array_equal(model(**inputs).integer_logits.numpy(), over_time[timesteps - 1])
    assert unit_of(graph.readout, 3) == 128 + 64 + 32


def test_an_unknown_readout_is_refused() -> None:
    with pytest.raises(ValueError, match="readout is 'mean', it must be one of"):
        small_config(readout="mean")
    with pytest.raises(ValueError, match="kind is 'spikes'"):
        layers.Readout(3, 2, "spikes")
    with pytest.raises(ValueError, match="decay is 4096"):
        layers.Readout(3, 2, "membrane", 4096)
