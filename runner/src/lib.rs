//! stub
#![allow(missing_docs)]
pub mod users { pub const MAX_FILE: u64 = 10<<20; pub struct U{pub identity: crate::Identity, pub home: String}
 pub fn owner(_:&str,_:Option<&str>,_:Option<&[u8]>,_:Option<&[u8]>)->Result<(u32,u32),std::io::Error>{todo!()}
 pub fn resolve(_:&str,_:Option<&[u8]>,_:Option<&[u8]>)->Result<U,std::io::Error>{todo!()} }
pub mod helper { pub fn main_if_requested(){} }
pub mod sandbox { pub use crate::*; }
#[derive(Debug,Clone,Default)] pub struct Identity;
pub const DEFAULT_PATH: &str = "";
#[derive(Debug,Clone)] pub enum Rootfs { Overlay{lower:Vec<std::path::PathBuf>,upper:std::path::PathBuf,work:std::path::PathBuf,volatile:bool,userxattr:bool}, }
#[derive(Debug,Clone)] pub struct MountSpec{pub source:MountSource,pub destination:String,pub readonly:bool}
#[derive(Debug,Clone)] pub enum MountSource{ Bind{path:std::path::PathBuf,selector:String,recursive:bool}, Overlay{lower:Vec<std::path::PathBuf>,scratch:Option<(std::path::PathBuf,std::path::PathBuf)>,selector:String}, Tmpfs{size:Option<u64>,mode:u32}, File{data:Vec<u8>,mode:u32,uid:u32,gid:u32}, Socket{path:std::path::PathBuf,mode:u32,uid:u32,gid:u32}}
#[derive(Debug,Clone)] pub enum Network{Host,None}
#[derive(Debug,Clone)] pub enum Security{Sandbox,Insecure}
#[derive(Debug,Clone)] pub struct Rlimit{pub name:String,pub soft:Option<u64>,pub hard:Option<u64>}
#[derive(Debug,Clone)] pub struct Spec{pub root:Rootfs,pub args:Vec<String>,pub env:Vec<String>,pub cwd:String,pub user:Identity,pub mounts:Vec<MountSpec>,pub network:Network,pub security:Security,pub hostname:String,pub hosts_file:Option<Vec<u8>>,pub resolv_conf:Option<Vec<u8>>,pub shm_size:Option<u64>,pub rlimits:Vec<Rlimit>,pub cgroup:Option<()>,pub tty:bool,pub init:bool}
impl Spec{pub fn new(_:Rootfs,_:Vec<String>)->Spec{todo!()}}
#[derive(Debug,Default)] pub struct Stdio{pub stdin:Option<std::os::fd::OwnedFd>,pub stdout:Option<std::os::fd::OwnedFd>,pub stderr:Option<std::os::fd::OwnedFd>}
#[derive(Debug)] pub struct Launcher; #[derive(Debug,thiserror::Error)] #[error("x")] pub struct SandboxError; impl SandboxError{pub fn exit_code(&self)->Option<u8>{None}}
impl Launcher{pub fn new()->Result<Launcher,SandboxError>{Ok(Launcher)} pub fn start(&self,_:&Spec,_:Stdio)->Result<Running,SandboxError>{todo!()}}
#[derive(Debug)] pub struct Running; impl Running{pub fn kill(&self){} pub fn wait(self)->Result<Outcome,SandboxError>{todo!()} pub fn killer(&self)->std::io::Result<Killer>{todo!()}}
#[derive(Debug)] pub struct Killer; impl Killer{pub fn kill(&self){}}
#[derive(Debug,Clone,Copy,PartialEq,Eq)] pub enum End{Exited(i32),Signaled(i32)} impl End{pub fn code(self)->i32{0}}
#[derive(Debug,Clone,Copy)] pub struct Outcome{pub end:End,pub oom:bool}
