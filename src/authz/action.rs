//! What can be permitted: one type for each rpc that is served, named as the rpc is; and one for what more an rpc may ask.

/// Something a caller asks to do.
pub trait Action: Send + Sync + 'static {
    const NAME: &'static str;
}

macro_rules! actions {
    ($($name:ident),* $(,)?) => {
        $(
            #[derive(Debug, Clone, Copy)]
            pub enum $name {}

            impl Action for $name {
                const NAME: &'static str = stringify!($name);
            }
        )*
    };
}

actions!(
    CreateKeyStore,
    DescribeKeyStores,
    UpdateKeyStore,
    DeleteKeyStore,
    ConnectKeyStore,
    DisconnectKeyStore,
    WatchKeyStore,
    DescribeClusters,
    CheckCluster,
    WatchCluster,
    DrainHsm,
    ResumeHsm,
    ListDrift,
    SyncCluster,
    CreateCluster,
    InitializeCluster,
    AddHsm,
    RemoveHsm,
    CreateCryptoUser,
    DeleteCryptoUser,
    ListCryptoUsers,
    ChangePassword,
    ResetPassword,
    Login,
    LoginAsKmsuser,
    RenewLogin,
    Logout,
    CreateKey,
    DescribeKey,
    ListKeys,
    UpdateKeyDescription,
    EnableKey,
    DisableKey,
    ScheduleKeyDeletion,
    CancelKeyDeletion,
    RotateKeyOnDemand,
    EnableKeyRotation,
    DisableKeyRotation,
    ListKeyVersions,
    DestroyHsmKey,
    CreateAlias,
    UpdateAlias,
    DeleteAlias,
    ListAliases,
    TagResource,
    UntagResource,
    ListResourceTags,
    Encrypt,
    Decrypt,
    GenerateDataKey,
    GenerateDataKeyWithoutPlaintext,
    GenerateRandom,
    GetServerInfo,
);
