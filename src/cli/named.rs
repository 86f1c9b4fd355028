//! Response messages by their full name in the descriptor set, which is how their JSON form is found.

use prost::Message;

use crate::proto::v1;

pub(super) trait Named: Message {
    const NAME: &'static str;
}

macro_rules! named {
    ($($message:ident),* $(,)?) => {
        $(impl Named for v1::$message {
            const NAME: &'static str = concat!("keyway.v1.", stringify!($message));
        })*

        #[cfg(test)]
        pub(super) const ALL: &[&str] = &[$(<v1::$message as Named>::NAME),*];
    };
}

named!(
    AddHsmResponse,
    CancelKeyDeletionResponse,
    ChangePasswordResponse,
    CheckClusterResponse,
    ConnectKeyStoreResponse,
    CreateAliasResponse,
    CreateClusterResponse,
    CreateCryptoUserResponse,
    CreateKeyResponse,
    CreateKeyStoreResponse,
    DecryptResponse,
    DeleteAliasResponse,
    DeleteCryptoUserResponse,
    DeleteKeyStoreResponse,
    DescribeClustersResponse,
    DescribeKeyResponse,
    DescribeKeyStoresResponse,
    DestroyHsmKeyResponse,
    DisableKeyResponse,
    DisableKeyRotationResponse,
    DisconnectKeyStoreResponse,
    DrainHsmResponse,
    EnableKeyResponse,
    EnableKeyRotationResponse,
    EncryptResponse,
    GenerateDataKeyResponse,
    GenerateDataKeyWithoutPlaintextResponse,
    GenerateRandomResponse,
    GetServerInfoResponse,
    InitializeClusterResponse,
    ListAliasesResponse,
    ListCryptoUsersResponse,
    ListDriftResponse,
    ListKeyVersionsResponse,
    ListKeysResponse,
    ListResourceTagsResponse,
    LoginResponse,
    LogoutResponse,
    RemoveHsmResponse,
    ResetPasswordResponse,
    ResumeHsmResponse,
    RotateKeyOnDemandResponse,
    ScheduleKeyDeletionResponse,
    SyncClusterResponse,
    TagResourceResponse,
    UntagResourceResponse,
    UpdateAliasResponse,
    UpdateKeyDescriptionResponse,
    UpdateKeyStoreResponse,
    WatchClusterResponse,
    WatchKeyStoreResponse,
    WhoAmIResponse,
);

impl Named for tonic_health::pb::HealthCheckResponse {
    const NAME: &'static str = "grpc.health.v1.HealthCheckResponse";
}
