-- beat(me, lease ms, highest number seen, longest delay ms)
--   -> {registered, now, the longest delay of all agents, whether something is due later than that,
--       {number, lease, its length}...}
-- Renews the lease, never registers again. Lists all agents, and with lease '' every number in flight
-- that nobody registered.
local me, lease, seen, longest =
  ARGV[1], assert(tonumber(ARGV[2])), assert(tonumber(ARGV[3])), assert(tonumber(ARGV[4]))
check_types()
local registered = redis.call('ZSCORE', AGENTS, me)
if registered then
  open_for_writing()
  redis.call('ZADD', AGENTS, now + lease, me)
  redis.call('HSET', CALLS, 'l' .. me, string.format('%.0f %.0f', lease, longest))
  -- A replica that became master may have a lower one, and other agents claim there too.
  if tonumber(redis.call('GET', ID) or '0') < seen then next_numbers(0, seen) end
end
local out, known = {}, {}
local agents = redis.call('ZRANGE', AGENTS, 0, -1, 'WITHSCORES')
for i = 1, #agents, 2 do
  local expires = tonumber(agents[i + 1])
  known[agents[i]] = true
  out[#out + 1] = agents[i]
  out[#out + 1] = string.format('%.0f', expires)
  local length, delay = string.match(redis.call('HGET', CALLS, 'l' .. agents[i]) or '', '^(%d+) (%d+)$')
  -- Programs before this one did not write it down; what is left of the lease is the next best.
  out[#out + 1] = length or string.format('%.0f', math.max(0, math.min(expires - now, 3600000)))
  longest = math.max(longest, tonumber(delay or 0))
end
-- The numbers in flight are the scores: each step goes past the one just seen.
local from = '-inf'
for _ = 1, 1000 do
  local next = redis.call('ZRANGEBYSCORE', INFLIGHT, from, '+inf', 'WITHSCORES', 'LIMIT', 0, 1)
  if not next[2] then break end
  local number = sixteen(next[2])
  if not known[number] then out[#out + 1] = number out[#out + 1] = '' out[#out + 1] = '0' end
  from = '(' .. number
end
local function is_beyond(key)
  local last = redis.call('ZREVRANGE', key, 0, 0, 'WITHSCORES')
  return last[2] and tonumber(last[2]) > now + longest
end
return {registered and 1 or 0, now, longest, (is_beyond(RETRY) or is_beyond(LANES)) and 1 or 0, out}
