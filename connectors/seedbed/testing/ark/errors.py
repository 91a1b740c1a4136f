"""The service's errors: `{"error": {"code", "message", "param", "type"}}`, and the status of each code."""

from __future__ import annotations

STATUS = {
    "InvalidParameter": 400,
    "MissingParameter": 400,
    "InvalidImageURL": 400,
    "OutofContextError": 400,
    "InputTextSensitiveContentDetected": 400,
    "InputImageSensitiveContentDetected": 400,
    "AuthenticationError": 401,
    "AccountOverdueError": 403,
    "AccessDenied": 403,
    "OperationDenied": 403,
    "InvalidEndpointOrModel": 404,
    "ModelNotOpen": 404,
    "ModelIDAccessDisabled": 404,
    "RateLimitExceeded": 429,
    "ModelAccountRpmRateLimitExceeded": 429,
    "ModelAccountTpmRateLimitExceeded": 429,
    "ModelAccountIpmRateLimitExceeded": 429,
    "AccountRateLimitExceeded": 429,
    "InflightBatchsizeExceeded": 429,
    "ServerOverloaded": 429,
    "RequestBurstTooFast": 429,
    "SetLimitExceeded": 429,
    "QuotaExceeded": 429,
    "InternalServiceError": 500,
    "ServiceUnavailable": 503,
}
"""By the code up to its first dot."""

_TYPES = {400: "BadRequest", 401: "Unauthorized", 403: "Forbidden", 404: "NotFound", 429: "TooManyRequests"}


class ArkError(Exception):
    """An answer that is an error. `code` as in STATUS, with what follows a dot."""

    def __init__(self, code: str, message: str, parameter: str = "") -> None:
        super().__init__(message)
        self.code, self.parameter = code, parameter
        self.status = STATUS[code.partition(".")[0]]

    def body(self) -> dict[str, object]:
        return {
            "error": {
                "code": self.code,
                "message": str(self),
                "param": self.parameter,
                "type": _TYPES.get(self.status, "InternalServerError"),
            }
        }
