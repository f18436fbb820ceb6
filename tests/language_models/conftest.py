from tests.litellm import litellm_proxy  # noqa: F401 -- a fixture
