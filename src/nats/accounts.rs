//! The configuration of a NATS server with one user per role, and the keys of these users. The
//! server gets public keys only. Nothing is sent to a server.

use std::fs::{self, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use nkeys::{KeyPair, KeyPairType};

use super::names::Names;
use super::roles::Role;
use crate::wire::{Kind, Prefix};

/// The file with the seed of a user's key, in the folder of the user's role.
const SEED_FILE: &str = "nats.nk";
/// The folder with the configuration of the server.
const SERVER_FOLDER: &str = "nats";

/// Which users there are.
#[derive(Clone, Debug)]
pub struct Accounts {
    /// The first token of every subject.
    pub prefix: Prefix,
    /// How many shards there are.
    pub shards: u32,
    /// The kinds whose workers get a user of their own.
    pub kinds: Vec<Kind>,
    /// Whether jobs may have ids that name no kind.
    pub plain_ids: bool,
}

/// Why the files could not be written.
#[derive(Debug, thiserror::Error)]
pub enum AccountsError {
    /// A file or a folder cannot be used.
    #[error("cannot use {}: {error}", path.display())]
    File {
        /// The file or folder.
        path: PathBuf,
        /// The reason.
        error: io::Error,
    },
    /// An existing file does not contain the seed of a user.
    #[error("{} is not the seed of an nkey of a user; remove it to get a new one", path.display())]
    NotASeed {
        /// The file.
        path: PathBuf,
    },
    /// No key could be made.
    #[error("cannot make a key: {0}")]
    NoKey(nkeys::error::Error),
}

impl Accounts {
    /// Writes `nats/server.conf`, `nats/accounts.conf`, and a key for each role, into `dir`. An
    /// existing key is kept, so it may be repeated when there are more kinds or shards. Returns the
    /// files with keys, each with its role.
    ///
    /// # Errors
    /// [`AccountsError`]. No error shows a key.
    pub fn write(&self, dir: &Path) -> Result<Vec<(Role, PathBuf)>, AccountsError> {
        let names = Names::new(self.prefix.clone());
        let mut keys = Vec::new();
        let mut users = String::new();
        for role in self.roles() {
            let path = dir.join(role.to_string()).join(SEED_FILE);
            let key = public_key(&path)?;
            if let Some(permissions) = role.permissions(&names, self.shards) {
                let permissions = if self.plain_ids {
                    permissions
                } else {
                    permissions.without_plain_ids(&names, self.shards)
                };
                let permissions = permissions.config("      ");
                users += &format!(
                    "      # {role}\n      {{ nkey: {key}, permissions: {permissions} }}\n"
                );
            }
            keys.push((role, path));
        }
        let accounts = format!(
            "# Written by `tailwater accounts`: one user per role, each with the subjects that it needs. Without one of these\n\
             # keys nobody gets in.\n\
             accounts {{\n  TAILWATER {{\n    jetstream: enabled\n    users: [\n{users}    ]\n  }}\n}}\n"
        );
        let folder = dir.join(SERVER_FOLDER);
        write_file(&folder, "accounts.conf", &accounts)?;
        let server = concat!(
            include_str!("../../nats/server.conf"),
            "\ninclude accounts.conf\n"
        );
        write_file(&folder, "server.conf", server)?;
        Ok(keys)
    }

    fn roles(&self) -> Vec<Role> {
        let general = [
            Role::Setup,
            Role::Edge,
            Role::Recorder,
            Role::Observer,
            Role::Worker(None),
        ];
        let kinds = self.kinds.iter().cloned();
        let of_kinds = kinds.map(|kind| Role::Worker(Some(kind)));
        general.into_iter().chain(of_kinds).collect()
    }
}

/// The public key of the seed in a file, which gets a new seed if it does not exist.
fn public_key(path: &Path) -> Result<String, AccountsError> {
    let not_a_seed = || AccountsError::NotASeed {
        path: path.to_owned(),
    };
    let key = match fs::read_to_string(path) {
        Ok(seed) => KeyPair::from_seed(seed.trim()).map_err(|_| not_a_seed())?,
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            let key = KeyPair::new_user();
            let seed = key.seed().map_err(AccountsError::NoKey)?;
            write_seed(path, &seed).map_err(|error| failed(path, error))?;
            key
        }
        Err(error) => return Err(failed(path, error)),
    };
    if key.key_pair_type() == KeyPairType::User {
        Ok(key.public_key())
    } else {
        Err(not_a_seed())
    }
}

/// Writes a file that only its owner can read.
fn write_seed(path: &Path, seed: &str) -> io::Result<()> {
    if let Some(folder) = path.parent() {
        fs::create_dir_all(folder)?;
    }
    let mut options = OpenOptions::new();
    options.write(true).create_new(true).mode(0o600);
    writeln!(options.open(path)?, "{seed}")
}

fn write_file(folder: &Path, name: &str, text: &str) -> Result<(), AccountsError> {
    fs::create_dir_all(folder).map_err(|error| failed(folder, error))?;
    let path = folder.join(name);
    fs::write(&path, text).map_err(|error| failed(&path, error))
}

fn failed(path: &Path, error: io::Error) -> AccountsError {
    AccountsError::File {
        path: path.to_owned(),
        error,
    }
}
