import re
from uuid import uuid4

import schemathesis

KEY = "Idempotency-Key"
UUID = re.compile("[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}", re.IGNORECASE)


# Hypothesis repeats keys, and the server would refuse every repeated key.
@schemathesis.hook
def before_call(_context, case, _kwargs):
    if UUID.fullmatch(str((case.headers or {}).get(KEY))):
        case.headers[KEY] = str(uuid4())
