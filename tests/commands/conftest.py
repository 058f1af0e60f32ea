from tests.publishing.finished_runs import runs  # noqa: F401
from tests.publishing.hub import hub  # noqa: F401
