-- give_back(me, id...) -> n: what Redis holds as in flight here, but the agent does not, is due again now.
local me, n = ARGV[1], 0
check_types()
open_for_writing()
for i = 2, #ARGV do
  local owner = redis.call('ZSCORE', INFLIGHT, ARGV[i])
  if owner and tonumber(owner) == tonumber(me) then
    redis.call('ZADD', RETRY, now, ARGV[i])
    redis.call('ZREM', INFLIGHT, ARGV[i])
    n = n + 1
  end
end
return n
