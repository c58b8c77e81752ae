use cloudapi::error::Code;

/// The whole table, as clients know it. A change here is a change of the contract.
const TABLE: &str = "\
BadRequest 400
InternalError 500
InUseError 409
InvalidArgument 409
InvalidCredentials 401
InvalidHeader 400
InvalidVersion 449
MissingParameter 409
MethodNotAllowed 405
NotAcceptable 406
NotAuthorized 403
NotImplemented 501
RequestThrottled 420
TooManyRequests 429
RequestTooLarge 413
ResourceMoved 302
ResourceNotFound 404
UnsupportedMediaType 415
UnknownError 500
ServiceUnavailable 503
InsufficientCapacity 409
ValidationFailed 409
CannotDestroyMachineError 409
DefaultFabricNetworkNotConfiguredError 409
VolumesNotReachable 409
MachineHasNoVNCError 400
MachineStoppedError 400
UpgradeRequiredError 400
InvalidFabricPackage 409
InvalidState 409
VolumeInUse 409
VolumeAlreadyExists 409
VolumeNotFound 404
VolumeSizeNotAvailable 409
InvalidNetworks 409
Forbidden 403
";

#[test]
fn codes_and_statuses_are_the_contracts() {
    let table: String = Code::ALL.iter().map(|code| format!("{} {}\n", code.as_str(), code.status())).collect();
    assert_eq!(table, TABLE);
}
