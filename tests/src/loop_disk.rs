//! A small ext4 file system of the test's own, in a file on a loop device: to be filled, and to have its power cut. Needs root.
//!
//! However a test ends it is unmounted, and the kernel frees the loop device with the last use.

use crate::tools::must;
use crate::wait_for;
use anyhow::{Context, Result, bail};
use std::fs::File;
use std::io::Write;
use std::os::fd::AsFd;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::Command;

/// Where fillers lie, below the mount: no process of the system looks there.
const FILLERS: &str = ".fillers";
/// Small enough that nothing of use fits beside them when the last one does not.
const FILLER_STEPS: [usize; 3] = [1 << 20, 64 << 10, 4096];
/// More empty files than any disk of a test has inodes.
const FILLERS_MAX: usize = 1_000_000;

/// What kind of disk.
#[derive(Debug, Clone, Copy)]
pub struct Format {
    pub mib: u64,
    /// How many files it can hold; `None` for what mkfs thinks right.
    pub inodes: Option<u32>,
}

impl Format {
    #[must_use]
    pub const fn mib(mib: u64) -> Self {
        Self { mib, inodes: None }
    }
}

/// See the module.
#[derive(Debug)]
pub struct LoopDisk {
    image: PathBuf,
    mount: PathBuf,
    is_mounted: bool,
}

impl LoopDisk {
    /// Makes the file system and mounts it over a directory, whose owner and mode it takes on.
    ///
    /// # Errors
    /// Not root, no loop devices, no mkfs.ext4.
    pub fn new(image: PathBuf, mount: PathBuf, format: Format) -> Result<Self> {
        File::create(&image)?.set_len(format.mib << 20)?;
        let mut mkfs = Command::new("mkfs.ext4");
        mkfs.args(["-q", "-F", "-m", "0", "-E", "lazy_itable_init=0,lazy_journal_init=0"]);
        if let Some(inodes) = format.inodes {
            mkfs.args(["-N", &inodes.to_string()]);
        }
        must(mkfs.arg(&image))?;
        let covered = std::fs::metadata(&mount)?;
        let mut disk = Self { image, mount, is_mounted: false };
        disk.mount()?;
        let _ = std::fs::remove_dir(disk.mount.join("lost+found"));
        std::fs::set_permissions(&disk.mount, std::fs::Permissions::from_mode(covered.mode()))?;
        std::os::unix::fs::chown(&disk.mount, Some(covered.uid()), Some(covered.gid()))?;
        Ok(disk)
    }

    #[must_use]
    pub fn path(&self) -> &Path {
        &self.mount
    }

    /// Mounts it again; ext4 replays its journal.
    ///
    /// # Errors
    /// mount(8)'s.
    pub fn mount(&mut self) -> Result<()> {
        must(Command::new("mount").args(["-t", "ext4", "-o", "loop"]).arg(&self.image).arg(&self.mount))?;
        self.is_mounted = true;
        Ok(())
    }

    /// Unmounts it, as soon as nobody uses it any more.
    ///
    /// # Errors
    /// Somebody goes on using it.
    pub fn unmount(&mut self) -> Result<()> {
        wait_for(&format!("umount {}", self.mount.display()), || {
            must(Command::new("umount").arg(&self.mount)).is_ok().then_some(())
        })?;
        self.is_mounted = false;
        Ok(())
    }

    /// The power goes: what no sync has covered is lost, and every change fails, until it is unmounted and mounted again.
    ///
    /// # Errors
    /// The kernel cannot do it.
    pub fn cut(&self) -> Result<()> {
        sys::shutdown::file_system(File::open(&self.mount)?.as_fd()).context("FS_IOC_SHUTDOWN")
    }

    /// Takes every free block.
    ///
    /// # Errors
    /// Another error than a full disk.
    pub fn fill(&self) -> Result<()> {
        let mut filler = File::create(self.fillers()?.join("blocks"))?;
        for step in FILLER_STEPS {
            let zeros = vec![0; step];
            // Delayed allocation would promise more than there is.
            while filler.write_all(&zeros).and_then(|()| filler.sync_data()).is_ok() {}
        }
        drop(filler);
        // A few blocks are kept for what it had to say about the long file.
        self.fill_with(b"x")?;
        let left = rustix::fs::statvfs(&self.mount)?.f_bavail;
        if left > 0 { bail!("{left} blocks of {} are still free", self.mount.display()) } else { Ok(()) }
    }

    /// Takes every free inode.
    ///
    /// # Errors
    /// There is no end to them.
    pub fn fill_inodes(&self) -> Result<()> {
        self.fill_with(b"")
    }

    /// Short files until there is no room for another.
    fn fill_with(&self, text: &[u8]) -> Result<()> {
        let fillers = self.fillers()?;
        for n in 0..FILLERS_MAX {
            let written = File::create(fillers.join(n.to_string())).and_then(|mut file| {
                file.write_all(text)?;
                if text.is_empty() { Ok(()) } else { file.sync_data() }
            });
            if written.is_err() {
                return Ok(());
            }
        }
        bail!("{} has room for more than {FILLERS_MAX} files", self.mount.display())
    }

    /// Gives back what was taken.
    ///
    /// # Errors
    /// The disk's.
    pub fn free(&self) -> Result<()> {
        Ok(std::fs::remove_dir_all(self.mount.join(FILLERS))?)
    }

    fn fillers(&self) -> Result<PathBuf> {
        let fillers = self.mount.join(FILLERS);
        std::fs::create_dir_all(&fillers)?;
        Ok(fillers)
    }
}

impl Drop for LoopDisk {
    fn drop(&mut self) {
        if self.is_mounted && self.unmount().is_err() {
            let _ = Command::new("umount").arg("--lazy").arg(&self.mount).status();
        }
        let _ = std::fs::remove_file(&self.image);
    }
}
