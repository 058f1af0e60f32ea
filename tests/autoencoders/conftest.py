from tests.architectures import one_thread  # noqa: F401 - a fixture that every test here uses
