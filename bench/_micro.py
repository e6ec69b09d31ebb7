import sys, torch, time, statistics
from bench.answers import make_spec, tensor_arguments, prepare_vecrope
from bench.workloads import make_workload
from vecrope import get_rope_index, plan_rope_index, concatenate_plans
from vecrope.forms.triton import launch as fused, operator
from vecrope.inputs import Inputs
def med(f,n=300,sync=True):
    t=[]
    for _ in range(n):
        torch.cuda.synchronize(); a=time.perf_counter_ns(); f()
        if sync: torch.cuda.synchronize()
        t.append((time.perf_counter_ns()-a)/1e3)
    return round(statistics.median(t),1)
for fam in ("glm4v","qwen2_5_vl"):
    w=make_workload(f"mixed-{fam}",4000,"cuda")
    spec=make_spec(w,"transformers"); args=tensor_arguments(w)
    un=prepare_vecrope(w,"transformers",validate=False); ch=prepare_vecrope(w,"transformers")
    un();ch()
    print(fam,"unchecked",med(un),"host",med(un,sync=False),"checked",med(ch))
    inp=Inputs(w.input_ids,**args)
    op=lambda: operator.traced_rope_index(inp,spec,validate=False)
    la=lambda: fused.launch(inp,spec,validate=False)
    op();print("launch",med(la),"op",med(op))
    b=fused.launch(inp,spec,validate=True)
    def rd1(): fused.launch(inp,spec,validate=True).faults.tolist()
    def rd2(): fused.launch(inp,spec,validate=True).faults[0].item()
    pin=torch.empty(3,dtype=torch.int64,pin_memory=True)
    def rd3():
        pin.copy_(fused.launch(inp,spec,validate=True).faults,non_blocking=True); torch.cuda.current_stream().synchronize()
    print("tolist",med(rd1),"item",med(rd2),"pinned",med(rd3))
    P=b.position_ids; D=b.rope_deltas
    for name,be in (("const",lambda gm,ex:(lambda *a:(P,D))),("eager","eager"),("inductor","inductor")):
        torch._dynamo.reset()
        f=torch.compile(get_rope_index,fullgraph=True,dynamic=True,backend=be)
        c=prepare_vecrope(w,"transformers",f,validate=False); c();c()
        print("compiled",name,med(c),"host",med(c,sync=False))
    torch._dynamo.reset()
    f=torch.compile(get_rope_index,fullgraph=True,dynamic=True,mode="reduce-overhead")
    c=prepare_vecrope(w,"transformers",f,validate=False)
    for _ in range(5): c()
    print("reduce-overhead",med(c))
torch.library.define("t::a","(Tensor a, Tensor? b, Tensor? c, Tensor? d, Tensor? e, Tensor? f, Tensor? g, bool x, bool y, str s) -> (Tensor, Tensor)",tags=(torch.Tag.pt2_compliant_tag,))
def impl(a,*r): return a.new_empty((3,*a.shape)), a.new_empty((a.shape[0],1))
torch.library.impl("t::a","default")(impl); torch.library.register_fake("t::a")(impl)
A=torch.ops.t.a.default
ids=w.input_ids; g=args.get("image_grid_thw"); v=args.get("video_grid_thw")
fa=lambda a,b,c: A(a,b,c,None,None,None,None,False,False,"x"*300)
torch._dynamo.reset(); c=torch.compile(fa,fullgraph=True,dynamic=True); k=lambda:c(ids,g,v); k();k()
print("empty operator: direct",med(lambda: fa(ids,g,v)),"compiled",med(k))
w=make_workload("mixed-batch-qwen2_5_vl",4000,"cuda"); spec=make_spec(w,"transformers"); args=tensor_arguments(w)
mk=lambda: plan_rope_index(w.input_ids,spec,**args,validate=False,max_groups=4096)
p=mk(); B=concatenate_plans([p]*(256//len(p)))
done=torch.arange(256,device="cuda",dtype=torch.int32)*17; ones=torch.ones_like(done)
st=lambda: B.step(done,ones,num_tokens=256,validate=False)
out=torch.empty((3,256),dtype=torch.int64,device="cuda")
so=lambda: B.step(done,ones,num_tokens=256,validate=False,out=out)
st();so()
print("plan made",med(mk),"step",med(st),"step out",med(so),"host",med(so,sync=False),"slice",med(lambda:B.slice(100,612)),"positions",med(B.position_ids),"select",med(lambda:B.select([*range(0,256,2)])),"join 8",med(lambda:concatenate_plans([p]*8)))
