-- beat(me, lease ms) -> {registered, {number, lease}...}: renews the lease, never registers again.
-- Lists all agents, and with lease '' every number in flight that nobody registered.
local me, lease = ARGV[1], assert(tonumber(ARGV[2]))
check_types()
local registered = redis.call('ZSCORE', AGENTS, me)
if registered then
  open_for_writing()
  redis.call('ZADD', AGENTS, now + lease, me)
end
local out, known = {}, {}
local agents = redis.call('ZRANGE', AGENTS, 0, -1, 'WITHSCORES')
for i = 1, #agents, 2 do
  known[agents[i]] = true
  out[#out + 1] = agents[i]
  out[#out + 1] = string.format('%.0f', tonumber(agents[i + 1]))
end
-- The numbers in flight are the scores: each step goes past the one just seen.
local from = '-inf'
for _ = 1, 1000 do
  local next = redis.call('ZRANGEBYSCORE', INFLIGHT, from, '+inf', 'WITHSCORES', 'LIMIT', 0, 1)
  if not next[2] then break end
  local number = sixteen(next[2])
  if not known[number] then out[#out + 1] = number out[#out + 1] = '' end
  from = '(' .. number
end
return {registered and 1 or 0, out}
