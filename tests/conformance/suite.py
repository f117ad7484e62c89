"""Transformers' common model tests for both recipes; run.py puts this file beside them."""

import os
import sys
import unittest

import torch
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES, MODEL_MAPPING_NAMES
from transformers.testing_utils import torch_device

from ...generation.test_utils import GenerationTesterMixin
from ...test_configuration_common import ConfigTester
from ...test_modeling_common import ModelTesterMixin, ids_tensor, random_attention_mask
from ...test_pipeline_mixin import PipelineTesterMixin
from ...test_training_mixin import TrainingTesterMixin

# This project has a package `tests` too: its root goes last, where the other one is not hidden by it.
sys.path.append(os.environ["TINY_STORY_ROOT"])

from modeling.configuration_tiny_story import TinyStoryConfig
from modeling.modeling_tiny_story import TinyStoryForCausalLM, TinyStoryModel

AutoConfig.register("tiny_story", TinyStoryConfig)
AutoModel.register(TinyStoryConfig, TinyStoryModel)
AutoModelForCausalLM.register(TinyStoryConfig, TinyStoryForCausalLM)
# The common tests tell by these names which classes have a loss.
MODEL_MAPPING_NAMES["tiny_story"] = "TinyStoryModel"
MODEL_FOR_CAUSAL_LM_MAPPING_NAMES["tiny_story"] = "TinyStoryForCausalLM"

SIZES = {
    "vocab_size": 99, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32,
    "max_position_embeddings": 512, "dropout": 0.0, "embedding_initializer_range": 0.02,
}  # fmt: skip
MODERN = {
    "norm_type": "rmsnorm", "norm_position": "pre", "position_type": "rope", "hidden_act": "swiglu", "qk_norm": True,
    "use_bias": False,
}  # fmt: skip


class TinyStoryModelTester:
    """Small configurations and inputs, under the names the common tests ask for."""

    config_class = TinyStoryConfig
    base_model_class = TinyStoryModel
    causal_lm_class = TinyStoryForCausalLM

    def __init__(self, parent: unittest.TestCase, recipe: dict):
        self.parent = parent
        self.recipe = recipe
        self.batch_size, self.seq_length, self.encoder_seq_length = 13, 7, 7
        self.is_training = True
        for name, value in SIZES.items():
            setattr(self, name, value)

    def get_config(self) -> TinyStoryConfig:
        return TinyStoryConfig(**SIZES, **self.recipe)

    def prepare_config_and_inputs_for_common(self) -> tuple[TinyStoryConfig, dict[str, torch.Tensor]]:
        shape = [self.batch_size, self.seq_length]
        inputs = {
            "input_ids": ids_tensor(shape, self.vocab_size).to(torch_device),
            "attention_mask": random_attention_mask(shape).to(torch_device),
        }
        return self.get_config(), inputs


class _Recipe(GenerationTesterMixin, ModelTesterMixin, PipelineTesterMixin, TrainingTesterMixin):
    recipe: dict = {}
    all_model_classes = (TinyStoryModel, TinyStoryForCausalLM)
    test_can_init_all_missing_weights_before_2023 = True  # else skipped: it goes by the file's copyright year
    pipeline_model_mapping = {"feature-extraction": TinyStoryModel, "text-generation": TinyStoryForCausalLM}

    @property
    def model_tester(self) -> TinyStoryModelTester:
        return self._model_tester

    def setUp(self) -> None:
        self._model_tester = TinyStoryModelTester(self, self.recipe)

    def test_config(self) -> None:
        ConfigTester(self, config_class=TinyStoryConfig, **SIZES, **self.recipe).run_common_tests()

    def test_model(self) -> None:
        config, inputs = self.model_tester.prepare_config_and_inputs_for_common()
        hidden = TinyStoryModel(config).to(torch_device).eval()(**inputs).last_hidden_state
        self.assertEqual(hidden.shape, (13, 7, 32))


class ClassicTest(_Recipe, unittest.TestCase):
    # Sinusoids are not rotary positions: there is nothing to scale.
    test_model_rope_scaling_from_config_0_linear = None
    test_model_rope_scaling_from_config_1_dynamic = None
    test_model_rope_scaling_from_config_2_yarn = None


class ModernTest(_Recipe, unittest.TestCase):
    recipe = MODERN
