import os
from shutil import which

import pytest
from hypothesis import assume, given
from support import assert_no_answer, assert_same, fitting, misfitting, rope_index

from tests.forms.programs import ahead_of_time, export, export_arguments
from tests.forms.prompts import SGLANG, SPECS

each_convention = pytest.mark.parametrize("spec", SPECS.values(), ids=SPECS.keys())


def exported(spec, **options):
    module = export(spec, **options).module()
    return lambda prompt: module(*export_arguments(prompt))


@each_convention
def test_exported_equals_eager(spec):
    function = exported(spec, validate=False)

    @given(fitting(spec))
    def check(prompt):
        assert_same(function(prompt), prompt.expected())

    check()


def test_exported_with_checks_answers_what_fits_and_nothing_else():
    function = exported(SGLANG)

    @given(fitting(SGLANG) | misfitting(SGLANG))
    def check(prompt):
        try:
            expected = rope_index(prompt)
        except ValueError as error:
            # Whether a grid is sound by itself is not asked under tracing, only whether it fits.
            assume("must be positive" not in str(error) and "divisible" not in str(error))
            assert_no_answer(function(prompt))
        else:
            assert_same(function(prompt), expected)

    check()


@pytest.mark.skipif("CI" in os.environ, reason="takes half a minute of a C++ compiler's time")
@pytest.mark.skipif(not which("g++"), reason="needs a C++ compiler")
@pytest.mark.filterwarnings("ignore")  # the compiler's own warnings are not ours
def test_compiled_ahead_of_time_equals_eager(tmp_path):
    program = ahead_of_time(export(SGLANG, validate=False), tmp_path)

    @given(fitting(SGLANG))
    def check(prompt):
        assert_same(program(*export_arguments(prompt)), prompt.expected())

    check()
