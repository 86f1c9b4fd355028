//! PKCS#11's functions by name, and what the shim must know of each. `C_GetFunctionList` is none of them: it always answers.

use std::fmt;
use std::str::FromStr;

macro_rules! functions {
    ($($name:ident)*) => {
        /// A function of PKCS#11 2.40.
        #[allow(non_camel_case_types, reason = "they are PKCS#11's names")]
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        pub enum Function {
            $($name),*
        }

        impl Function {
            pub const ALL: &[Self] = &[$(Self::$name),*];

            pub const fn name(self) -> &'static str {
                match self {
                    $(Self::$name => stringify!($name)),*
                }
            }
        }
    };
}

functions! {
    C_Initialize C_Finalize C_GetInfo C_GetSlotList C_GetSlotInfo C_GetTokenInfo C_GetMechanismList
    C_GetMechanismInfo C_InitToken C_InitPIN C_SetPIN C_OpenSession C_CloseSession C_CloseAllSessions
    C_GetSessionInfo C_GetOperationState C_SetOperationState C_Login C_Logout C_CreateObject C_CopyObject
    C_DestroyObject C_GetObjectSize C_GetAttributeValue C_SetAttributeValue C_FindObjectsInit C_FindObjects
    C_FindObjectsFinal C_EncryptInit C_Encrypt C_EncryptUpdate C_EncryptFinal C_DecryptInit C_Decrypt
    C_DecryptUpdate C_DecryptFinal C_DigestInit C_Digest C_DigestUpdate C_DigestKey C_DigestFinal C_SignInit
    C_Sign C_SignUpdate C_SignFinal C_SignRecoverInit C_SignRecover C_VerifyInit C_Verify C_VerifyUpdate
    C_VerifyFinal C_VerifyRecoverInit C_VerifyRecover C_DigestEncryptUpdate C_DecryptDigestUpdate
    C_SignEncryptUpdate C_DecryptVerifyUpdate C_GenerateKey C_GenerateKeyPair C_WrapKey C_UnwrapKey C_DeriveKey
    C_SeedRandom C_GenerateRandom C_GetFunctionStatus C_CancelFunction C_WaitForSlotEvent
}

impl Function {
    /// Whether each call is written to the journal, without a rule that says so.
    pub(crate) fn is_rare(self) -> bool {
        use Function::*;
        let rare = [C_Initialize, C_Login, C_SetPIN, C_InitToken, C_GenerateKey, C_UnwrapKey, C_DestroyObject];
        rare.contains(&self)
    }

    /// Whether a token's user must be logged in for it, as long as what it works on is private.
    pub(crate) fn needs_login(self) -> bool {
        use Function::*;
        let public = [
            C_Initialize,
            C_Finalize,
            C_GetInfo,
            C_GetSlotList,
            C_GetSlotInfo,
            C_GetTokenInfo,
            C_GetMechanismList,
            C_GetMechanismInfo,
            C_InitToken,
            C_SetPIN,
            C_OpenSession,
            C_CloseSession,
            C_CloseAllSessions,
            C_GetSessionInfo,
            C_Login,
            C_FindObjectsInit,
            C_FindObjects,
            C_FindObjectsFinal,
            C_DigestInit,
            C_Digest,
            C_DigestUpdate,
            C_DigestFinal,
            C_SeedRandom,
            C_GenerateRandom,
            C_GetFunctionStatus,
            C_CancelFunction,
            C_WaitForSlotEvent,
        ];
        !public.contains(&self)
    }
}

impl fmt::Display for Function {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for Function {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        Self::ALL.iter().copied().find(|function| function.name() == text).ok_or(())
    }
}
